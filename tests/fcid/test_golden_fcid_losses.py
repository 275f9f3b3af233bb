"""Golden cases of single losses: CLUB (c03), CPC (c04), InfoNCE (c08), and of the heads (c09)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fcid.golden_case import Case, cases, close
from toc_cli.fcid.head import ClipHead, SecondHead, clip_target, explog
from toc_cli.fcid.losses.club import GuessNet, club, club_over_features, loglikelihood
from toc_cli.fcid.losses.cpc import ContextNet, cpc, cpc_accuracy
from toc_cli.fcid.losses.infonce import infonce


def test_club(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c03_club_*"):
        x, y = case["in.x"].requires_grad_(), case["in.y"].requires_grad_()
        hidden = 2 * case["w.p_mu.0.weight"].shape[0]
        net = GuessNet(x.shape[-1], y.shape[-1], hidden).double()
        net.load_state_dict({name.removeprefix("p_"): w for name, w in case.under("w.").items()})
        mu, logvar = net(x)
        close(mu, case["out.mu"], 1e-10, 1e-14, case.name)
        close(logvar, case["out.logvar"], 1e-10, 1e-14, case.name)
        for draw in range(sum(name.startswith("in.perm") for name in case.arrays)):
            perm = case[f"in.perm{draw}"]
            estimate = (club if x.dim() == 3 else club_over_features)(mu, logvar, y, y[perm])
            close(estimate, case.scalar(f"mi_est{draw}"), 1e-10, 1e-13, case.name)
            if f"grad.mi_est{draw}.x" in case:
                grads = torch.autograd.grad(estimate, (x, y), retain_graph=True)
                for name, grad in zip("xy", grads, strict=True):
                    close(grad, case[f"grad.mi_est{draw}.{name}"], 1e-8, 1e-12, case.name)
        likelihood = loglikelihood(mu, logvar, y).mean()
        close(likelihood, case.scalar("loglikeli"), 1e-10, 0, case.name)
        (-likelihood).backward()
        for name, p in net.named_parameters():
            if f"grad.negloglik.p_{name}" in case:
                close(p.grad, case[f"grad.negloglik.p_{name}"], 1e-8, 1e-12, f"{case.name} {name}")


def context_nets(case: Case, names: list[str]) -> list[ContextNet]:
    nets = []
    for name in names:
        hidden, width = case[f"w.{name}_ar_lstm.weight_hh_l0"].shape[1], case[f"in.{name}"].shape[-1]
        steps = sum(key.endswith("bias") for key in case.under(f"w.{name}_predictors."))
        layers = sum(key.startswith("weight_hh_l") for key in case.under(f"w.{name}_ar_lstm."))
        net = ContextNet(width, hidden, steps, layers).double()
        state = {f"lstm.{n}": w for n, w in case.under(f"w.{name}_ar_lstm.").items()}
        net.load_state_dict(state | {f"predictors.{n}": w for n, w in case.under(f"w.{name}_predictors.").items()})
        nets.append(net)
    return nets


def test_cpc(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c04_cpc_*"):
        names = ["video", "audio"]
        x = [case[f"in.{name}"].requires_grad_() for name in names]
        nets = context_nets(case, names)
        for t in case.json["t_values"]:
            predictions = [net(z) for net, z in zip(nets, x, strict=True)]
            loss = cpc(x, predictions, torch.tensor([t]), [None, None])
            close(loss, case.scalar(f"t{t}.nce"), 1e-10, 0, f"{case.name} t={t}")
            for number, (target, context) in enumerate([(0, 1), (1, 0), (0, 0), (1, 1)], start=1):
                accuracy = cpc_accuracy(x[target], predictions[context], t)
                close(accuracy, case.scalar(f"t{t}.accuracy{number}"), 0, 1e-6, f"{case.name} t={t}")
            if t == case.scalar("grad_t"):
                parameters = {
                    f"{n}.{p}": v for n, net in zip(names, nets, strict=True) for p, v in net.named_parameters()
                }
                grads = torch.autograd.grad(loss, x + list(parameters.values()))
                for name, grad in zip(names, grads, strict=False):
                    close(grad, case[f"grad.{name}"], 1e-8, 1e-12, case.name)
                for name, grad in zip(parameters, grads[2:], strict=True):
                    published = name.replace(".lstm.", "_ar_lstm.").replace(".predictors.", "_predictors.")
                    if f"grad.{published}" in case:
                        close(grad, case[f"grad.{published}"], 1e-8, 1e-12, f"{case.name} {name}")


def test_all_anchors_are_the_mean_of_single_ones(golden_dir: Path) -> None:
    case = cases(golden_dir, "c04_cpc_*")[0]
    x = [case["in.video"], case["in.audio"]]
    predictions = [net(z) for net, z in zip(context_nets(case, ["video", "audio"]), x, strict=True)]
    values = [case.scalar(f"t{t}.nce") for t in case.json["t_values"]]
    close(cpc(x, predictions, torch.tensor(case.json["t_values"]), [None, None]), sum(values) / len(values), 1e-10)


def test_infonce(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c08_infonce_*"):
        query, key = case["in.query"].requires_grad_(), case["in.key"].requires_grad_()
        loss = infonce(query, key)
        close(loss, case.scalar("loss"), 1e-11, 0, case.name)
        close(infonce(key, query), case.scalar("loss_swapped"), 1e-11, 0, case.name)
        close(infonce(query, key, temperature=1.0), case.scalar("loss_temp1"), 1e-11, 0, case.name)
        halves = (case.scalar("loss") + case.scalar("loss_swapped")) / 2
        close(infonce(query, key, both_ways=True), halves, 1e-11, 0, case.name)
        for name, grad in zip(("query", "key"), torch.autograd.grad(loss, (query, key)), strict=True):
            close(grad, case[f"grad.{name}"], 1e-9, 1e-14, case.name)


def selected(case: Case) -> torch.Tensor:
    return case["in.codebook"][case["in.codes"]][..., case["in.sel"]]


def loaded(head: ClipHead | SecondHead, case: Case) -> ClipHead | SecondHead:
    head.double().load_state_dict({n.replace("event_", ""): w for n, w in case.under("w.").items()})
    return head


def published_adam(parameters: list[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=4e-4)


def test_clip_head(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c09_head_ave_*"):
        z, target = selected(case), clip_target(case["in.labels"])
        assert torch.equal(target, case["out.target"])
        head = loaded(ClipHead(z.shape[-1], case["w.event_classifier.weight"].shape[0]), case)
        adam = published_adam(list(head.parameters()))
        for step in range(3):
            logits = head(z)
            close(logits, case[f"out.logits{step}"], 1e-10, 1e-13, case.name)
            loss = nn.functional.cross_entropy(logits, target)
            close(loss, case.scalar(f"loss{step}"), 1e-10, 0, case.name)
            close(100 * (logits.argmax(1) == target).double().mean(), case.scalar(f"acc{step}"), 0, 1e-9, case.name)
            adam.zero_grad()
            loss.backward()
            close(nn.utils.clip_grad_norm_(head.parameters(), 0.5), case.scalar(f"grad_norm{step}"), 1e-8, 0, case.name)
            adam.step()
        for name, w in case.under("out.w3.").items():
            close(head.state_dict()[name.replace("event_", "")], w, 0, 1e-9, f"{case.name} {name}")


def test_second_head(golden_dir: Path) -> None:
    for case in cases(golden_dir, "c09_head_avvp_*"):
        z, labels = selected(case), case["in.labels"].flatten(0, 1)
        head = loaded(SecondHead(z.shape[-1], labels.shape[-1]), case)
        alpha = nn.Parameter(torch.full((labels.shape[-1],), 0.1))
        adam = published_adam([*head.parameters(), alpha])
        for step in range(3):
            logits = head(z).flatten(0, 1)
            close(logits, case[f"out.logits{step}"], 1e-10, 1e-13, case.name)
            bce = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            extra = explog(logits, labels, alpha)
            close(bce, case.scalar(f"bce{step}"), 1e-6, 0, case.name)
            close(extra, case.scalar(f"explog{step}"), 1e-6, 0, case.name)
            guesses = logits.sigmoid() > 0.5
            hits = (guesses & (labels > 0)).sum()
            close(hits / guesses.sum().clamp(min=1), case.scalar(f"precision{step}"), 0, 1e-6, case.name)
            close(hits / labels.sum().clamp(min=1), case.scalar(f"recall{step}"), 0, 1e-6, case.name)
            adam.zero_grad()
            (bce + extra).backward()
            assert alpha.grad is not None
            close(alpha.grad.norm(), case.scalar(f"grad_norm_alpha{step}"), 1e-6, 0, case.name)
            if case.json["alpha_clipped"]:
                nn.utils.clip_grad_norm_([alpha], 0.5)
            close(nn.utils.clip_grad_norm_(head.parameters(), 0.5), case.scalar(f"grad_norm{step}"), 1e-6, 0, case.name)
            adam.step()
        close(alpha, case["out.alpha3"], 0, 1e-7, case.name)
        for name, w in case.under("out.w3.").items():
            close(head.state_dict()[name.replace("event_", "")], w, 0, 1e-7, f"{case.name} {name}")
