"""Plain words about failure: what a reader must know before shipping, each with the number behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toc_cli.report import words
from toc_cli.report.checks import Outcome
from toc_cli.report.rivals import cheaper
from toc_cli.report.words import interval, keeps_all, kept_of, number, plural

STABLE = 0.8
FEATURES_PER_CODE = 10
SHARED = 0.5  # half-way from chance to perfect overlap

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Alarm:
    """A sentence about one codebook (or, without one, about the inputs) and the metric behind it."""

    id: str
    codebook: int | None
    text: str
    metric: str | None = None


def warnings(record: Mapping[str, Any], values: Mapping[int, Values]) -> list[Alarm]:
    """The pipeline's warnings about the inputs, then ours about each codebook; `values` by codebook id."""
    keys = {codebook["id"]: f"{words.name(codebook['key'], 120)}: " for codebook in record["codebooks"]}
    found = []
    for entry in record["warnings"]:
        text = entry["text"].removeprefix(keys.get(entry["codebook"], ""))
        found.append(
            Alarm(entry["id"], entry["codebook"], text[:1].upper() + text[1:] if text != entry["text"] else text)
        )
    said = {(entry.id, entry.codebook) for entry in found}
    for codebook in record["codebooks"]:
        for rule in _RULES:
            warning = rule(codebook, values[codebook["id"]], record)
            if warning is not None and (warning.id, warning.codebook) not in said:
                found.append(warning)
    return found


def also_cut(codebook: Mapping[str, Any]) -> list[str]:
    """What was cut beside dimensions, in words: levels and codes."""
    levels, codes = codebook.get("levels_cut") or {}, codebook.get("codes") or {}
    found = []
    if levels.get("after", 0) < levels.get("before", 0):
        found.append(f"{levels['after']:,} of {levels['before']:,} levels")
    if codes:
        found.append(f"{max(codes['after']):,} of {max(codes['before']):,} codes")
    return found


def summary(codebook: Mapping[str, Any], values: Values) -> str:
    """One sentence: what was kept and what it cost."""
    intervals = codebook["ci95"]["after"]
    kept = [*also_cut(codebook), f"{kept_of(codebook)} dimensions"]
    parts = [f"keeps {', '.join(kept)}"]
    agreement, excess, ratio = (values.get(name) for name in ("token_agreement", "excess_distortion", "bytes_ratio"))
    if agreement is not None:
        spread = interval(intervals.get("token_agreement"), "share")
        parts.append(f"{number(agreement, 'share')} of tokens unchanged {spread}".rstrip())
    if excess is not None:
        spread = interval(intervals.get("excess_distortion"), "change")
        parts.append(f"distortion {number(excess, 'change')} {spread}".rstrip())
    if refresh := codebook.get("refresh"):
        rows = "rows that they did not see" if refresh["apart"] else "the rows that they saw, for want of others"
        was = number(refresh["before"]["excess_distortion"], "change")
        parts[-1] += f" (before {plural(refresh['steps'], 'step')} of refreshing {was}, measured on {rows})"
    if ratio is not None:
        parts.append(f"{number(ratio, 'share')} of the codebook's bytes")
    known = reading(codebook)
    return ", ".join(parts) + (f"; its reading is {known}" if known else "")


def reading(codebook: Mapping[str, Any]) -> str:
    """How the reading of the codebook is known; "" where an older record does not say."""
    evidence = codebook.get("evidence", "")
    shares = [proof["least"] for proof in (codebook.get("proof") or {}).values()]
    if evidence == "proven" and shares:
        return f"proven by the model's own tokens ({number(min(shares), 'share')} equal)"
    return {"stated": "stated by its config or class names", "by structure": "known by the structure of the file"}.get(
        evidence, evidence
    )


def status(outcomes: Sequence[Outcome], open_alarms: int, fail_on: str) -> str:
    """`fail`: a check that counts does not hold; `open`: nothing was checked; `warn`: something to weigh."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failing(outcomes, fail_on):
        return "fail"
    if not any(outcome.status == "passed" for outcome in outcomes) and not failed:
        return "open"
    return "warn" if failed or open_alarms else "pass"


def failing(outcomes: Sequence[Outcome], fail_on: str) -> list[Outcome]:
    """The failed checks that make the gate fail: errors, and under `--fail-on warn` warnings too."""
    return [o for o in outcomes if o.status == "failed" and (o.check.level == "error" or fail_on == "warn")]


def headline(outcomes: Sequence[Outcome], open_alarms: int, fail_on: str, advice: str) -> str:
    """Ship or not, in one line: what the gate says, or the advice where nothing was checked."""
    held = sum(outcome.status == "passed" for outcome in outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    weigh = f"{plural(open_alarms, 'warning')} to weigh" if open_alarms else ""
    match status(outcomes, open_alarms, fail_on):
        case "fail":
            count = len(failing(outcomes, fail_on))
            return f"Do not ship: {count} of {plural(held + failed, 'check')} {'fails' if count == 1 else 'fail'}."
        case "open":
            return advice
        case "warn":
            soft = f"{plural(failed, 'soft check')} {'fails' if failed == 1 else 'fail'}" if failed else ""
            return f"Ship with care: {' and '.join(filter(None, [soft, weigh]))}."
    return f"Ship: {'the check holds' if held == 1 else f'all {held} checks hold'}."


def _not_better_than_random(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    """Where the paired advantage may be 0, or the chosen interval overlaps what single random sets reach."""
    low, value = values["advantage_over_random_low"], values["advantage_over_random"]
    if low is None or value is None or keeps_all(codebook):
        return None
    chosen = codebook["ci95"]["after"].get("excess_distortion")
    best = codebook["baselines"].get("random", {}).get("excess_distortion", {}).get("min")
    if low > 0 and not (chosen and best is not None and chosen[1] >= best):
        return None
    spread = interval(codebook["advantage_over_random"]["distortion"]["ci95"], "points")
    verb = "is worse than" if value < 0 else "is not measurably better than"
    text = (
        f"The criterion {words.name(str(record['options'].get('criterion')))} {verb} picking dimensions at "
        "random at this keep "
        f"ratio: its advantage in excess distortion is {number(value, 'points')} {spread}"
        + ("." if best is None else f", and the best random set costs {number(best, 'change')}.")
    )
    return Alarm("not_better_than_random", codebook["id"], text, "advantage_over_random_low")


def _beaten_by_baseline(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    chosen = codebook["ci95"]["after"].get("excess_distortion")
    better = [rival for rival in cheaper(record, codebook) if rival.criterion in ("variance", "pca")]
    if not better or keeps_all(codebook):
        return None
    best = min(better, key=lambda rival: rival.excess or 0.0)
    text = (
        f"Another selection of the same size costs less: {best.criterion} has excess distortion {number(best.excess, 'change')}, "
        f"the chosen one {number(values.get('excess_distortion'), 'change')} {interval(chosen, 'change')}. "
        f"Try --criterion {best.criterion}."
    )
    return Alarm("beaten_by_baseline", codebook["id"], text, f"advantage_over_{best.criterion}")


def _unstable(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    stability = values["stability"]
    if stability is None or stability >= STABLE:
        return None
    over, resamples = words.name(codebook["stability"]["over"]), codebook["stability"]["resamples"]
    text = (
        f"The kept set is unstable: over {resamples} resamples of the {over} it overlaps itself by only "
        f"{number(stability, 'share')} (Jaccard; {number(STABLE, 'share')} is the mark)."
    )
    return Alarm("unstable_selection", codebook["id"], text, "stability")


def _small_sample(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    per_code = values["sample_per_code"]
    if per_code is None or per_code >= FEATURES_PER_CODE:
        return None
    text = (
        f"The sample is small for this codebook: {codebook['sample']['evaluated']:,} features for "
        f"{max(codebook['num_codes']):,} codes, {number(per_code, 'number')} each. Used and dead codes and "
        "perplexity are "
        f"rarefied; {FEATURES_PER_CODE} features per code or more would settle them."
    )
    return Alarm("small_sample", codebook["id"], text, "sample_per_code")


def _few_units(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    sample = codebook["sample"]
    if not sample.get("few_units"):
        return None
    text = (
        f"The intervals rest on few units ({sample['units']:,} {words.name(str(sample['unit']))}, resampled whole): they say "
        "more about these than about where they come from."
    )
    return Alarm("few_units", codebook["id"], text, "sample_units")


def _dead_dimensions(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    dead = codebook["dead_dimensions"]
    if not dead:
        return None
    sets = codebook.get("dead_by_head") or [[dead]]
    counts = {(level, head): count for level, row in enumerate(sets) for head, count in enumerate(row) if count}
    worst = max(counts, key=lambda place: counts[place], default=(0, 0))
    verb = "is" if dead == 1 else "are"
    text = f"{plural(dead, 'dimension')} of {codebook['dim']:,} {verb} dead{_at(worst, sets)}: the same value in every code."
    if len(counts) > 1:
        text += f" {len(counts) - 1:,} other heads have some too."
    if record["options"].get("criterion") == "toc":
        text += " The published score can rank a dead dimension above a live one; --criterion toc-live ranks them last."
    return Alarm("dead_dimensions", codebook["id"], text, "dead_dimensions")


def _at(place: tuple[int, int], sets: list[list[int]]) -> str:
    """Which of several levels and heads, in words."""
    level = [f"level {place[0]}"] if len(sets) > 1 else []
    head = [f"head {place[1]}"] if len(sets[0]) > 1 else []
    return " in " + ", ".join(level + head) if level or head else ""


def _dead_codes(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    dead, before = values.get("dead_codes"), values.get("before.dead_codes")
    if not dead:
        return None
    text = (
        f"{plural(int(dead), 'code')} of {sum(codebook['num_codes']) * codebook['heads']:,} "
        f"{'is' if dead == 1 else 'are'} never chosen by {codebook['sample']['evaluated']:,} features"
    )
    return Alarm(
        "dead_codes",
        codebook["id"],
        text + ("." if before is None else f" ({int(before):,} before pruning)."),
        "dead_codes",
    )


def _modalities_disagree(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    overlap = values["modality_jaccard"]
    share = codebook["kept_dim"] / codebook["dim"]
    chance = share / (2 - share)
    if overlap is None or chance >= 1 or (overlap - chance) / (1 - chance) >= SHARED:
        return None
    text = (
        f"The modalities disagree about which dimensions matter: what each alone would keep overlaps by "
        f"{number(overlap, 'share')}, and two random sets of this size by {number(chance, 'share')}."
    )
    return Alarm("modalities_disagree", codebook["id"], text, "modality_jaccard")


def _tokens_change(codebook: Mapping[str, Any], values: Values, record: Mapping[str, Any]) -> Alarm | None:
    agreement = values.get("token_agreement")
    if agreement is None or agreement >= 1:
        return None
    text = (
        f"{number(1 - agreement, 'share')} of tokens change. A language model or any other model trained on the "
        "old tokens "
        "must be trained or fine-tuned on new ones; --emit consumer, where the family offers it, keeps every token as it is."
    )
    return Alarm("tokens_change", codebook["id"], text, "token_agreement")


_Rule = Callable[[Mapping[str, Any], Values, Mapping[str, Any]], "Alarm | None"]
_RULES: tuple[_Rule, ...] = (
    _not_better_than_random,
    _beaten_by_baseline,
    _unstable,
    _small_sample,
    _few_units,
    _dead_dimensions,
    _dead_codes,
    _modalities_disagree,
    _tokens_change,
)
