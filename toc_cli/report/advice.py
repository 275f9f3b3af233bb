"""What to do about a run, in one sentence with the command: ship this selection, or run that one instead.

The rules, the first that holds, per codebook; the run takes the most cautious one of its codebooks:

1. never     the features are not what the codebook was trained on (SNR of at most 0 dB before pruning), the reading is only assumed,
             or the sample has fewer features than the codebook has codes: no figure here can be trusted
2. ship      nothing was dropped; or the distortion is no higher within its interval and 95% of tokens stay; or the asked bound holds
3. stop      another measured selection of this size that an asked form can take costs less than the interval of this one, or random
             ones do as well
4. weigh     it costs something, and nothing measured at this size clearly costs less
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from toc_cli.report.rivals import Rival, cheapest, listed
from toc_cli.report.verdict import FEATURES_PER_CODE, Values, also_cut
from toc_cli.report.words import keep_flag, keeps_all, kept_of, number, plural
from toc_cli.report.words import name as shown

Kind = Literal["ship", "weigh", "stop", "never"]
ORDER: tuple[Kind, ...] = ("ship", "weigh", "stop", "never")
TONE = {"ship": "pass", "weigh": "warn", "stop": "fail", "never": "fail"}
RULES = {
    "ship": "nothing was dropped, the distortion is no higher within its interval and at least 95% of tokens stay, or it is within the "
    "bound that was asked",
    "weigh": "the selection costs something, and nothing measured at this size clearly costs less",
    "stop": "another measured selection of this size, which an asked form can take, costs less than the interval of this one, or "
    "random ones do as well",
    "never": "the features do not fit the codebook (SNR of at most 0 dB before pruning), how it is read is only assumed, "
    "or the sample has fewer features than codes",
}
"""What each kind of advice means, for the page and `toc explain`."""

SAME = 0.95
"""Share of tokens that must stay for a selection to ship though nobody asked for a bound: noise may cost no distortion either."""
MOST_FEATURES = 3
"""Feature files that a command names; of more it says `FEATURES`."""
READING = {"codebook": "--codebook", "layout": "--layout", "metric": "--metric", "channel_axis": "--channel-axis"}
CUT = {"levels": "--levels", "codes": "--codes", "refresh": "--refresh"}
CHOICE = {"normalize": "--normalize", "ratio": "--ratio", "fill": "--fill", "seed": "--seed"}
DEFAULTS = {"normalize": "none", "seed": 0}
"""Options that a command repeats: how the files are read always, how dimensions are chosen where the criterion stays."""


EVALUATED = {
    "keep": "--keep", "criteria": "--criterion", "tasks": "--task", "transfer": "--transfer", "modalities": "--modality",
    "parts": "--part", "scoring_split": "--scoring-split", "retrieval_splits": "--retrieval-split", "probe_seeds": "--seeds",
    "probe_epochs": "--probe-epochs", "probe_width": "--probe-width", "seed": "--seed",
}  # fmt: skip
"""Options of an evaluation that a command repeats."""


@dataclass(frozen=True)
class Advice:
    """What to do about a run or a codebook."""

    kind: Kind
    text: str
    """What to do, in one sentence."""
    then: str = ""
    """What to do instead or next; a command stands in backticks."""
    command: str = ""
    """The command alone, where there is a better run than this one."""
    codebook: int | None = None


def advise(record: Mapping[str, Any], values: Mapping[int, Values]) -> Advice:
    """The advice on a run: the most cautious of its codebooks', all of them summed up where every one ships."""
    books = record["codebooks"]
    if not books:
        what = "Tokens were counted, nothing was pruned" if "tokens" in record else "Nothing was pruned in this run"
        return Advice("weigh", f"{what}: read its figures.")
    each = [_book(record, book, values[book["id"]]) for book in books]
    worst = max(each, key=lambda advice: ORDER.index(advice.kind))
    if len(books) == 1 or worst.kind != "ship":
        where = f"Codebook {worst.codebook}: " if len(books) > 1 else ""
        return replace(worst, text=where + worst.text)
    agreement = [value for book in books if (value := values[book["id"]].get("token_agreement")) is not None]
    least = f", at least {number(min(agreement), 'share')} of tokens unchanged in each" if agreement else ""
    return Advice("ship", f"Ship it: {plural(len(books), 'codebook')} pruned{least}.")


def of_all(named: Sequence[tuple[str, Advice, bool]]) -> Advice:
    """The advice on several runs, each with its name and whether it pruned: the most cautious of those that did."""
    weighed = [entry for entry in named if entry[2]] or list(named)
    name, worst, _ = max(weighed, key=lambda entry: ORDER.index(entry[1].kind))
    if len(weighed) == 1:
        return worst
    if worst.kind == "ship":
        return Advice("ship", f"Ship all {len(weighed)}: what each costs is said below.")
    return replace(worst, text=f"{shown(name)}: {worst.text}")


def _book(record: Mapping[str, Any], book: Mapping[str, Any], values: Values) -> Advice:
    for rule in (_veto, _nothing_lost, _stop):
        found = rule(record, book, values)
        if found is not None:
            return found
    return _weigh(record, book, values)


def _veto(record: Mapping[str, Any], book: Mapping[str, Any], values: Values) -> Advice | None:
    per_code = values.get("sample_per_code")
    sides = [book["before"], *(modality["before"] for modality in (book.get("per_modality") or {}).values())]
    snr = min((side["snr_db"] for side in sides if side.get("snr_db") is not None), default=None)
    if snr is not None and snr <= 0:
        before = f"explains them with {number(snr, 'db')} before anything is pruned."
        if book.get("evidence") == "proven":
            text = f"Do not ship: the model is untrained, or these data are not of its kind: its codebook {before}"
            then = "It is read right, so give data like those it was trained on: `toc capture MODEL DATA -o feats.h5`."
        else:
            text = f"Do not ship: these features are not what this codebook was trained on: it {before}"
            then = "Capture what reaches the quantiser: `toc capture MODEL DATA -o feats.h5`."
        return Advice("never", text, then, codebook=book["id"])
    if book.get("evidence") == "assumed" and not record["options"].get("assume"):
        text = "Do not ship yet: how this codebook is read is assumed, not known."
        then = "The model's own tokens beside the features prove it: `toc capture MODEL DATA -o feats.h5`."
        return Advice("never", text, then, codebook=book["id"])
    if per_code is not None and per_code < 1:
        codes = max(book["num_codes"])
        text = f"Do not ship yet: {book['sample']['evaluated']:,} features cannot vet {codes:,} codes."
        return Advice("never", text, f"Give at least {FEATURES_PER_CODE * codes:,}.", codebook=book["id"])
    return None


def _nothing_lost(record: Mapping[str, Any], book: Mapping[str, Any], values: Values) -> Advice | None:
    excess, agreement = values.get("excess_distortion"), values.get("token_agreement")
    bounds = book["ci95"]["after"].get("excess_distortion")
    if keeps_all(book) and agreement == 1 and (excess is None or excess <= 0):
        kept = "every dimension is kept" if not also_cut(book) else f"{_share(book)} kept"
        return Advice("ship", f"Ship it: {kept}, and every token is unchanged.", codebook=book["id"])
    lossless = agreement == 1 if excess is None else (bounds[0] if bounds else excess) <= 0
    asked = _asked(record["options"], excess, agreement)
    if not asked and not (lossless and (agreement is None or agreement >= SAME)):
        return None
    same = f"{number(agreement, 'share')} of tokens unchanged" if agreement is not None else "tokens unmeasured"
    cost = "" if excess is None else f", distortion {number(excess, 'change')}"
    return Advice("ship", f"Ship it: {_share(book)}, {same}{cost}{asked}.", codebook=book["id"])


def _asked(options: Mapping[str, Any], excess: float | None, agreement: float | None) -> str:
    """Which bounds of the run hold, in words; "" where none was asked or one does not hold."""
    parts = []
    for name, value, of, holds in (
        ("max_distortion", excess, "excess distortion", lambda value, bound: value <= bound),
        ("min_agreement", agreement, "tokens", lambda value, bound: value >= bound),
    ):
        bound = options.get(name)
        if bound is None:
            continue
        if value is None or not holds(value, bound):
            return ""
        parts.append(f"{100 * bound:g}% of {of}")
    return f", within the asked {' and '.join(parts)}" if parts else ""


def _stop(record: Mapping[str, Any], book: Mapping[str, Any], values: Values) -> Advice | None:
    cost = _cost(values.get("excess_distortion"), values.get("token_agreement"))
    better = cheapest(record, book)
    if better is not None and _fits(record, better):
        then = f"{_costs_less(record, book, better)}{_forms(book, better)}."
        return Advice("stop", f"Do not ship this selection: {cost}.", then, _instead(record, book, better), book["id"])
    low = values.get("advantage_over_random_low")
    if low is not None and low <= 0 and not keeps_all(book):
        text = f"Do not ship this selection: {cost}, and random dimensions do as well at this size."
        if record["options"].get("criterion") == "auto":
            command = rerun(record, keep="auto", min_agreement=SAME)
            then = f"`auto` found nothing better: keep more dimensions, as `{command}` does."
        else:
            command = rerun(record, criterion="auto", keep=keep_flag(book))
            then = f"Try `{command}`."
        return Advice("stop", text, then, command, book["id"])
    return None


def _fits(record: Mapping[str, Any], rival: Rival) -> bool:
    """Whether one of the forms asked for can take it: of a run that asked for no copy, the artefact does."""
    asked = [mode for mode in record["options"].get("emit", ()) if mode != "codebook"]
    return len(rival.refused) < max(1, len(asked)) and not (
        rival.refused and record["options"].get("criterion") == "auto"
    )


def _instead(record: Mapping[str, Any], book: Mapping[str, Any], rival: Rival) -> str:
    return rerun(record, criterion=rival.criterion, keep=keep_flag(book), emit=rival.forms)


def _costs_less(record: Mapping[str, Any], book: Mapping[str, Any], rival: Rival) -> str:
    return f"`{_instead(record, book, rival)}` costs {_price(rival.excess, rival.agreement)}"


def _forms(book: Mapping[str, Any], rival: Rival) -> str:
    """In which forms that can be written; "" where the record does not say."""
    if rival.criterion not in (book.get("forms") or {}):
        return ""
    return f" and can be written as {listed(rival.forms)} for this family"


def _weigh(record: Mapping[str, Any], book: Mapping[str, Any], values: Values) -> Advice:
    bound, agreement = values.get("excess_distortion"), values.get("token_agreement") or 0.0
    check = (
        f"token_agreement>={_below(agreement)}"
        if bound is None or bound <= 0
        else f"excess_distortion<={_above(100 * bound)}%"
    )
    other = cheapest(record, book)
    tried = len((book.get("auto") or {}).get("candidates") or ())
    nothing = (
        f"no other of the {tried} criteria that `auto` tried does better"
        if tried > 1
        else f"nothing measured at this size {'that the asked forms can take ' if other else ''}clearly costs less"
    )
    text = f"Weigh it: {_share(book)} kept, {_cost(bound, values.get('token_agreement'))}, and {nothing}."
    then = f"Ship it if you can lose that, and let the gate hold it: `toc report --check '{check}'`."
    if other is not None:
        then += f" Not as {listed(other.refused)}, but as {listed(other.forms)}: {_costs_less(record, book, other)}."
    return Advice("weigh", text, then, codebook=book["id"])


def _cost(excess: float | None, agreement: float | None) -> str:
    price = _price(excess, agreement)
    return f"it costs {price}"


def _price(excess: float | None, agreement: float | None) -> str:
    """`+374% distortion`; what tokens change where a codebook has no distortion."""
    if excess is not None:
        return f"{number(excess, 'change')} distortion"
    return "an unknown price" if agreement is None else f"{number(1 - agreement, 'share')} of the tokens"


def _share(book: Mapping[str, Any]) -> str:
    kept, dim = book["kept_dim"], book["dim"]
    words = {2: "half the dimensions", 3: "a third of the dimensions", 4: "a quarter of the dimensions"}
    if "kept_dims" not in book and kept < dim and dim % kept == 0 and dim // kept in words:
        dimensions = words[dim // kept]
    else:
        dimensions = f"{kept_of(book)} dimensions"
    cut = also_cut(book)
    return ", ".join([*cut, *([dimensions] if not keeps_all(book) or not cut else [])])


def _below(share: float) -> str:
    """A number of percent that the share does not fall short of."""
    return f"{math.floor(1000 * share) / 10:g}%"


def _above(percent: float) -> str:
    """A number of percent in two digits that the value does not exceed."""
    step = 10.0 ** (math.floor(math.log10(percent)) - 1)
    return f"{math.ceil(percent / step) * step:.6g}"


def rerun(record: Mapping[str, Any], *, emit: Sequence[str] | None = None, **changes: Any) -> str:
    """The command that makes this record, with some options changed (`criterion`, `keep`); names are quoted for a shell.

    Of the forms only those in `emit` are asked again.
    """
    if "tokens" in record:
        return f"toc quantize FEATURES --codebook {_quoted(record['tokens']['codebook'])}"
    if "evaluation" in record:
        return _evaluated(record)
    options = {**record["options"], **changes}
    modes = [m for m in options.get("emit", ()) if m != "codebook" and (emit is None or m in emit)]
    named = {role: [e["name"] for e in record["inputs"] if e["role"] == role] for role in ("checkpoint", "features")}
    checkpoint, features = (
        [record["checkpoint"]] if record.get("checkpoint") else named["checkpoint"],
        named["features"],
    )
    words = ["toc optimize", _quoted(checkpoint[0]) if len(checkpoint) == 1 else "CHECKPOINT"]
    words += (
        [f"--features {_quoted(f)}" for f in features]
        if 0 < len(features) <= MOST_FEATURES
        else ["--features FEATURES"]
    )
    if options.get("criterion", "toc") != "toc":
        words.append(f"--criterion {_quoted(options['criterion'])}")
    spent = [name for name in ("budget", "bytes") if "keep" not in changes and options.get(name) is not None]
    size = (spent[0], options[spent[0]]) if spent else ("keep", options.get("keep", "0.5"))
    words.append(f"--{size[0]} {_quoted(size[1])}")
    if options.get("keep") == "auto":
        bounds = ("max_distortion", "min_agreement")
        words += [f"--{b.replace('_', '-')} {options[b]:g}" for b in bounds if options.get(b) is not None]
    flags = {**READING, **CUT} if "criterion" in changes else {**READING, **CUT, **CHOICE}
    for name, flag in flags.items():
        value = options.get(name)
        if value not in (None, [], DEFAULTS.get(name)):
            words += [f"{flag} {_quoted(one)}" for one in (value if isinstance(value, list) else [value])]
    return " ".join([*words, *(f"--emit {_quoted(mode)}" for mode in modes)])


def _evaluated(record: Mapping[str, Any]) -> str:
    """The command that makes an evaluation's record."""
    found, options = record["evaluation"], record["options"]
    words = ["toc evaluate", _quoted(found["source"]["name"]), _quoted(found["data"])]
    for name, flag in EVALUATED.items():
        value = options.get(name)
        if name == "keep" and value == []:
            words.append("--keep none")
        elif name == "criteria" and options.get("keep") == []:
            continue
        elif isinstance(value, list) and name in ("keep", "criteria"):
            words.append(f"{flag} {_quoted(','.join(map(str, value)))}")
        elif value not in (None, []):
            words += [f"{flag} {_quoted(one)}" for one in (value if isinstance(value, list) else [value])]
    artefacts = [entry["name"] for entry in record["inputs"] if entry["role"] == "artefact"]
    return " ".join([*words, *(f"--artefact {_quoted(name)}" for name in artefacts)])


def _quoted(value: object) -> str:
    return shlex.quote(shown(str(value), 200))
