"""What a reader may ask of a report: each number and each warning with when to worry and the check to write."""

from __future__ import annotations

from dataclasses import dataclass

from toc_cli.report.advice import RULES
from toc_cli.report.metrics import METRICS

UNITS = {
    "share": "a share; 0.95 and 95% are the same bound",
    "change": "a relative change; 0.02 and 2% are the same bound",
    "points": "a difference of shares; 0.01 is one point",
    "db": "decibels",
    "bits": "bits",
    "bytes": "bytes",
    "count": "a count",
    "number": "a number",
}
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "": "neither way is better as such"}

WORRY = {
    "token_agreement": (
        "below 95%: one token in twenty means something else to a model trained on the old ones",
        ">=95%",
    ),
    "excess_distortion": ("above 2%, or above what pca costs at the same size", "<=2%"),
    "distortion": ("when it grows against the last release", "<=baseline * 1.05"),
    "snr_db": (
        "at or below 0 dB before pruning: the features are not what the codebook was trained on",
        ">=baseline - 0.5",
    ),
    "near_tie_rate": ("above 0.1%: half precision or another library may choose other tokens", "<=0.1%"),
    "used_codes": ("when it falls", ">=baseline * 0.98"),
    "dead_codes": ("when it grows; at few features per code it only says that the sample is small", "<=baseline"),
    "perplexity": ("when it falls by more than a few percent", ">=baseline * 0.95"),
    "entropy": ("when it falls by more than a few points", ">=baseline - 0.02"),
    "mean_cosine": ("near 1: the codes say nearly the same", "<=0.9"),
    "min_distance": ("at 0: two codes are equal", ">0"),
    "effective_rank": ("far below the number of dimensions kept: fewer would do", ">=baseline * 0.9"),
    "usage_rank": ("above the number of dimensions kept: no rotation of that size holds what the codes say", ""),
    "bytes": ("above what the release may take", "<=baseline"),
    "code_agreement": ("when it falls: the modalities no longer share their codes", ">=baseline - 0.01"),
    "js_bits": ("when it grows: the modalities use different codes", "<=baseline + 0.01"),
    "probe_accuracy": ("when it falls by more than its interval", ">=baseline - 0.01"),
    "advantage_over_random": ("at or below 0: the criterion does no better than chance", ">0"),
    "advantage_over_random_low": ("at or below 0: the advantage may be chance", ">0"),
    "advantage_over_random_agreement": ("at or below 0", ">0"),
    "advantage_over_random_agreement_low": ("at or below 0: the advantage may be chance", ">0"),
    "advantage_over_variance": ("below 0: --criterion variance costs less", ">=0"),
    "advantage_over_pca": ("far below 0: --criterion pca costs less, where the form can take a rotation", ">=-2%"),
    "stability": ("below 80%: other data would keep other dimensions", ">=80%"),
    "stability_min": ("below 60%", ">=60%"),
    "dead_dimensions": ("above 0: they cost bytes and tell no codes apart", "==0"),
    "sample_per_code": ("below 10: counts of used and dead codes say more about the sample", ">=10"),
    "sample_units": ("below 20: intervals over so few clips or files are rough", ">=20"),
    "modality_jaccard": ("near what two random sets share: the modalities want different dimensions", ">=50%"),
    "kept_dim": ("when it is not what was asked", "==baseline"),
    "bytes_ratio": ("when it is not what was asked", "<=50%"),
    "output_snr_db": (
        "below 40 dB: the change can be heard or seen (masked.output_snr_db, sliced.output_snr_db, …)",
        ">=40",
    ),
    "psnr_db": ("when it falls by more than its interval", ">=baseline - 0.1"),
    "ssim": ("when it falls by more than its interval", ">=baseline - 0.005"),
    "si_sdr_db": ("when it falls by more than its interval", ">=baseline - 0.1"),
    "log_mel_db": ("when it grows by more than its interval", "<=baseline + 0.1"),
    "psnr_db_change": ("below -0.1 dB", ">=-0.1"),
    "ssim_change": ("below -0.005", ">=-0.005"),
    "si_sdr_db_change": ("below -0.1 dB", ">=-0.1"),
    "log_mel_db_change": ("above 0.1 dB", "<=0.1"),
    "output_bytes": ("above what the release may take", "<=baseline"),
}
"""By metric: when to worry, and the bound of a sensible check. A starting point: the right bound is what your model can lose."""

WARNINGS = {
    "not_better_than_random": (
        "Random sets of as many dimensions cost no more than the chosen one, within the interval over features and seeds.",
        "The choice is then not worth its name: take another criterion, or keep more.",
        "advantage_over_random_low>0",
    ),
    "beaten_by_baseline": (
        "Another measured selection of the same size costs less than the lower end of the chosen one's interval.",
        "Take that one, unless the form that you need cannot hold it (a rotation under masked, say).",
        "advantage_over_pca>=0",
    ),
    "unstable_selection": (
        "On bootstrap resamples the criterion keeps noticeably other dimensions (mean Jaccard overlap below 80%).",
        "Give more features, or a criterion that the data determine better.",
        "stability>=80%",
    ),
    "small_sample": (
        "There are fewer than ten features per code, so rare codes look dead and perplexity looks low.",
        "Give more features; agreement and distortion carry their own intervals.",
        "sample_per_code>=10",
    ),
    "few_units": (
        "The features hold fewer than 20 clips, files or datasets, and whole units are what intervals resample.",
        "Intervals over so few units are rough: give more clips.",
        "sample_units>=20",
    ),
    "dead_dimensions": (
        "Some dimensions have the same value in every code, so they tell no codes apart.",
        "The published score can rank them above live ones; --criterion toc-live ranks them last.",
        "dead_dimensions==0",
    ),
    "dead_codes": (
        "Some codes are chosen by none of the features.",
        "With enough features per code they are wasted rows of every embedding that is trained on the tokens.",
        "dead_codes<=baseline",
    ),
    "modalities_disagree": (
        "What each modality alone would keep overlaps little more than two random sets would.",
        "One set of dimensions then serves neither well: look at each modality's own figures.",
        "modality_jaccard>=50%",
    ),
    "tokens_change": (
        "Some features get another token from the pruned codebook.",
        "It matters wherever a model was trained on the old tokens; --emit consumer keeps every token.",
        "token_agreement>=95%",
    ),
    "unexplained_features": (
        "Before any pruning the codes explain the features no better than their mean would (SNR at or below 0 dB).",
        "These are not the features that this codebook was trained on: capture what reaches the quantiser.",
        "before.snr_db>0",
    ),
    "tied": (
        "Another layer of the file is the very tensor of the codebook (an output layer tied to it, say), so a copy changes both.",
        "Use the codebook form, or untie them, where that layer must stay as it is.",
        "",
    ),
    "off_centre_codes": (
        "The codes lie far from 0, so the paper's score ranks dimensions by their mean more than by what they tell apart.",
        "Take a criterion that does not see the mean: --criterion variance, usage-variance or pca.",
        "advantage_over_variance>=0",
    ),
    "zero_codes": (
        "Some codes are all zero, as codes are that training never used.",
        "Nothing to mend in the file; it explains dead codes.",
        "dead_codes<=baseline",
    ),
    "labels": (
        "Labels came with the features and were left out: they fit no modality, are no whole numbers, or have another name.",
        "Labels are integer `label…` arrays along the first axes of the features, or one for each clip or file.",
        "",
    ),
    "family": (
        "What the family of the checkpoint tells its readers, such as a metric that the file does not name.",
        "Settle it with the flag that the warning names.",
        "",
    ),
}
"""By warning: what it says, what to do about it, the check that weighs it."""


@dataclass(frozen=True)
class Entry:
    """One explained name."""

    name: str
    kind: str
    """metric, warning, verdict or criterion."""
    definition: str
    unit: str = ""
    direction: str = ""
    worry: str = ""
    """When to worry, or what to do."""
    check: str = ""
    """A check to write."""
    label: str = ""


def entries() -> list[Entry]:
    """Everything that a report names."""
    found = []
    for metric in METRICS.values():
        worry, bound = WORRY.get(metric.name, ("", ""))
        check = f"{metric.name}{bound}" if bound else ""
        found.append(
            Entry(
                metric.name,
                "metric",
                metric.definition,
                UNITS[metric.unit],
                DIRECTIONS[metric.better],
                worry,
                check,
                metric.label,
            )
        )
    found += [Entry(name, "warning", says, worry=todo, check=check) for name, (says, todo, check) in WARNINGS.items()]
    return found + [Entry(kind, "verdict", rule[0].upper() + rule[1:] + ".") for kind, rule in RULES.items()]
