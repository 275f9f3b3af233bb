"""Every number that a report shows or a check can name: what it means, and its value in a record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["share", "change", "points", "db", "bits", "bytes", "count", "number"]


@dataclass(frozen=True)
class Metric:
    """One number of the record, in words."""

    name: str
    label: str
    unit: Unit
    better: Literal["higher", "lower", ""]
    definition: str


_TABLE = (
    Metric(
        "token_agreement",
        "Token agreement",
        "share",
        "higher",
        "Share of features whose nearest code stays the same: k(x) over all dimensions against k'(x) over the "
        "kept ones. "
        "A model trained on the old tokens sees a changed input in the remaining share.",
    ),
    Metric(
        "excess_distortion",
        "Excess distortion",
        "change",
        "lower",
        "Distortion after divided by distortion before, minus one. Zero means the pruned codebook reconstructs "
        "the features "
        "as well as the full one.",
    ),
    Metric(
        "distortion",
        "Distortion",
        "number",
        "lower",
        "Mean squared distance between a feature and the vector that stands for it, over all dimensions. After "
        "pruning, "
        "dropped dimensions are filled with one constant. Under a cosine lookup both have unit length, head by head.",
    ),
    Metric(
        "snr_db",
        "Signal to noise",
        "db",
        "higher",
        "10 log10 of the features' variance over the distortion. At or below 0 dB before pruning, the codes explain the "
        "features no better than their mean does.",
    ),
    Metric(
        "near_tie_rate",
        "Near ties",
        "share",
        "lower",
        "Share of features whose second-nearest code lies within 1e-6 (relative) of the nearest: tokens that "
        "rounding could flip.",
    ),
    Metric("used_codes", "Codes used", "count", "higher", "Number of codes that at least one of the features chose."),
    Metric(
        "dead_codes",
        "Dead codes",
        "count",
        "lower",
        "Number of codes that no feature chose. With fewer than ten features per code, some of them are only rare.",
    ),
    Metric(
        "perplexity",
        "Perplexity",
        "number",
        "higher",
        "exp of the entropy of code usage: the number of codes that would give this entropy if all were used equally.",
    ),
    Metric(
        "entropy",
        "Usage entropy",
        "share",
        "higher",
        "Entropy of code usage as a share of its maximum, log K. 100% means every code is used equally often.",
    ),
    Metric(
        "mean_cosine",
        "Mean cosine",
        "number",
        "lower",
        "Mean cosine between two different codes: the redundancy that the paper's criterion is meant to lower.",
    ),
    Metric(
        "min_distance",
        "Closest codes",
        "number",
        "higher",
        "Smallest distance between two codes; not there where finding it would have cost more than the run.",
    ),
    Metric(
        "effective_rank",
        "Effective rank",
        "number",
        "higher",
        "exp of the entropy of the normalised singular values of the centred codebook: how many directions the "
        "codes really span.",
    ),
    Metric(
        "usage_rank",
        "Usage rank",
        "number",
        "",
        "exp of the entropy of the eigenvalues of the codes' covariance, codes counted by use: how many dimensions a rotation "
        "needs to keep.",
    ),
    Metric("bytes", "Codebook size", "bytes", "lower", "Bytes of the codebook's tensors in the input's dtype."),
    Metric(
        "code_agreement",
        "Cross-modal code agreement",
        "share",
        "higher",
        "Share of paired steps where both modalities take the same code.",
    ),
    Metric(
        "js_bits",
        "Cross-modal divergence",
        "bits",
        "lower",
        "Jensen-Shannon divergence between the code histograms of two modalities: 0 when they use codes alike, "
        "1 when they share none.",
    ),
    Metric(
        "probe_accuracy",
        "Probe accuracy",
        "share",
        "higher",
        "Accuracy of a linear probe trained on the codes of one modality and tested on another's, averaged "
        "over the directions.",
    ),
    Metric(
        "advantage_over_random",
        "Advantage over random",
        "points",
        "higher",
        "Mean excess distortion of random selections of the same size (5 seeds) minus the chosen one's, in "
        "percentage points. Above "
        "zero, the "
        "criterion beats chance.",
    ),
    Metric(
        "advantage_over_random_low",
        "Advantage over random, lower end",
        "points",
        "higher",
        "Lower end of the 95% interval of the advantage over random: a paired bootstrap over feature blocks that carries the "
        "spread of the random sets as well. Above zero, the criterion beats chance: of random selections 2.5% would.",
    ),
    Metric(
        "advantage_over_random_agreement",
        "Agreement over random",
        "points",
        "higher",
        "Token agreement of the chosen selection minus the mean of random ones.",
    ),
    Metric(
        "advantage_over_random_agreement_low",
        "Agreement over random, lower end",
        "points",
        "higher",
        "Lower end of the 95% interval of the agreement over random.",
    ),
    Metric(
        "advantage_over_variance",
        "Advantage over variance",
        "points",
        "higher",
        "Excess distortion of keeping the dimensions of highest variance minus the chosen selection's.",
    ),
    Metric(
        "advantage_over_pca",
        "Advantage over PCA",
        "points",
        "higher",
        "Excess distortion of the leading principal components of the codes, a rotation, minus the chosen selection's.",
    ),
    Metric(
        "stability",
        "Stability",
        "share",
        "higher",
        "Mean Jaccard overlap between the kept set and the sets kept on bootstrap resamples. Below 80%, other "
        "data would "
        "have kept noticeably other dimensions.",
    ),
    Metric("stability_min", "Stability, worst", "share", "higher", "Smallest of these Jaccard overlaps."),
    Metric(
        "dead_dimensions",
        "Dead dimensions",
        "count",
        "lower",
        "Dimensions whose variance over the codes is under 1e-6 of the largest: they tell no two codes apart. Of several "
        "heads the one with most.",
    ),
    Metric(
        "sample_per_code",
        "Features per code",
        "number",
        "higher",
        "Evaluated features divided by the codes of the largest level. Below ten, counts of used and dead "
        "codes say more "
        "about the sample than about the codebook.",
    ),
    Metric(
        "sample_units",
        "Units sampled",
        "count",
        "higher",
        "Clips, utterances or files that the intervals resample whole; of plain rows, blocks of contiguous rows. Below "
        "twenty, an interval says more about them than about where they come from.",
    ),
    Metric(
        "modality_jaccard",
        "Modality overlap",
        "share",
        "higher",
        "Mean pairwise Jaccard overlap of the dimensions that each modality alone would keep.",
    ),
    Metric("kept_dim", "Dimensions kept", "count", "", "Dimensions per code after pruning."),
    Metric("bytes_ratio", "Size ratio", "share", "lower", "Bytes of the codebook after pruning as a share of before."),
    Metric(
        "output_snr_db",
        "Change of the output",
        "db",
        "higher",
        "What the model puts out after pruning against before, on the files of --data: 10 log10 of the power before over "
        "that of the difference, mean over files. Higher is less change; 120 dB stands for none.",
    ),
    Metric(
        "psnr_db",
        "PSNR",
        "db",
        "higher",
        "Peak signal to noise of the decoded pictures against the data, mean over files.",
    ),
    Metric(
        "ssim",
        "SSIM",
        "number",
        "higher",
        "Structural similarity of the decoded pictures and the data, mean over files.",
    ),
    Metric(
        "si_sdr_db",
        "SI-SDR",
        "db",
        "higher",
        "Scale-invariant signal to distortion of the decoded sound against the data, mean over files.",
    ),
    Metric(
        "log_mel_db",
        "Log-mel distance",
        "db",
        "lower",
        "Mean distance between the log-mel spectrograms of the decoded sound and the data, mean over files.",
    ),
    Metric("psnr_db_change", "PSNR, change", "db", "higher", "PSNR after pruning minus before, paired over files."),
    Metric("ssim_change", "SSIM, change", "number", "higher", "SSIM after pruning minus before, paired over files."),
    Metric(
        "si_sdr_db_change", "SI-SDR, change", "db", "higher", "SI-SDR after pruning minus before, paired over files."
    ),
    Metric(
        "log_mel_db_change",
        "Log-mel distance, change",
        "db",
        "lower",
        "Log-mel distance after minus before, paired over files.",
    ),
    Metric(
        "entropy_bits",
        "Entropy",
        "number",
        "higher",
        "Entropy of code usage in bits a token, of log2 K that a code takes.",
    ),
    Metric("distinct_ids", "Distinct ids", "count", "higher", "How many different ids the rows' tokens make."),
    Metric("largest_id", "Fullest id", "count", "lower", "Rows that share the commonest id."),
    Metric("rows_alone", "Rows alone", "share", "higher", "Share of rows whose id no other row has."),
    Metric(
        "collision_rate", "Collision rate", "share", "lower", "1 - distinct ids / rows: what ids do not tell apart."
    ),
    Metric("output_bytes", "Output size", "bytes", "lower", "Bytes of the file that was written."),
)

METRICS = {metric.name: metric for metric in _TABLE}
SHARES: tuple[Unit, ...] = ("share", "change", "points")
"""Units that tables show in percent (or percentage points)."""
_SPAN: dict[Unit, tuple[float, float]] = {
    "share": (0, 1), "change": (-1, math.inf), "bits": (0, 1), "bytes": (0, math.inf), "count": (0, math.inf),
}  # fmt: skip
_OWN_SPAN = {
    "bytes_ratio": (0, math.inf), "mean_cosine": (-1, 1), "distortion": (0, math.inf), "perplexity": (0, math.inf),
    "min_distance": (0, math.inf), "entropy_bits": (0, math.inf), "effective_rank": (0, math.inf), "sample_per_code": (0, math.inf),
    "advantage_over_random_agreement": (-1, 1), "advantage_over_random_agreement_low": (-1, 1),
}  # fmt: skip


def span(metric: Metric) -> tuple[float, float]:
    """The smallest and largest value that a metric can have."""
    return _OWN_SPAN.get(metric.name) or _SPAN.get(metric.unit, (-math.inf, math.inf))


def describe(name: str) -> Metric:
    """The metric behind a checkable name: `audio.token_agreement`, `before.distortion` and `level0.snr_db` included."""
    last = name.rpartition(".")[2]
    return METRICS["output_bytes"] if name.startswith("output_bytes.") else METRICS[last]


def values(codebook: dict[str, Any], record: dict[str, Any]) -> dict[str, float | None]:
    """Every number of a codebook's entry that a check can name; None where the record says it is undefined."""
    found: dict[str, float | None] = {}
    found |= _numbers(codebook["after"])
    found |= _whole(codebook)
    found |= {f"output_bytes.{output['mode']}": output["bytes"] for output in record["outputs"]}
    found |= _numbers(codebook["before"], "before.")
    found |= _outcome(record.get("outcome") or {})
    for level in codebook.get("per_level", ()):
        found |= _numbers(level["after"], f"level{level['level']}.")
        found |= _numbers(level["before"], f"level{level['level']}.before.")
    for name, modality in codebook.get("per_modality", {}).items():
        found |= _missing(found, _numbers(modality["after"], f"{name}."))
        found |= _missing(found, _numbers(modality["before"], f"{name}.before."))
    for pair, sides in codebook.get("cross_modal", {}).items():
        found |= _missing(found, _numbers(sides["after"], f"{pair}."))
        found |= _missing(found, _numbers(sides["before"], f"{pair}.before."))
    for direction, result in ((codebook.get("probe") or {}).get("after") or {}).items():
        found |= _missing(found, {f"{direction}.probe_accuracy": result["accuracy"]})
    return found


def _numbers(block: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    return {prefix + name: block[name] for name in METRICS if name in block}


def _outcome(outcome: dict[str, Any]) -> dict[str, float | None]:
    """What comes out of the model: `masked.psnr_db`, `masked.psnr_db_change`, `before.psnr_db`."""
    sides = {"before": outcome.get("before", {}), **outcome.get("forms", {})}
    return {f"{side}.{name}": cell["value"] for side, cells in sides.items() for name, cell in cells.items()}


def _missing(found: dict[str, float | None], more: dict[str, float | None]) -> dict[str, float | None]:
    """Names out of files never hide ours: a modality called `before` keeps its numbers out of the way."""
    return {name: value for name, value in more.items() if name not in found}


def _whole(codebook: dict[str, Any]) -> dict[str, float | None]:
    """The numbers that stand beside `before` and `after` in a codebook's entry."""
    advantage = codebook.get("advantage_over_random") or {}
    distortion, agreement = advantage.get("distortion") or {}, advantage.get("agreement") or {}
    stability = codebook.get("stability") or {}
    before, after = codebook["before"].get("bytes"), codebook["after"].get("bytes")
    return {
        "advantage_over_random": distortion.get("value"),
        "advantage_over_random_low": _first(distortion.get("ci95")),
        "advantage_over_random_agreement": agreement.get("value"),
        "advantage_over_random_agreement_low": _first(agreement.get("ci95")),
        "advantage_over_variance": _over(codebook, "variance"),
        "advantage_over_pca": _over(codebook, "pca"),
        "stability": stability.get("jaccard_mean"),
        "stability_min": stability.get("jaccard_min"),
        "dead_dimensions": codebook["dead_dimensions"],
        "sample_per_code": codebook["sample"]["evaluated"] / max(codebook["num_codes"]),
        "sample_units": codebook["sample"].get("units"),
        "modality_jaccard": (codebook.get("modality_agreement") or {}).get("jaccard"),
        "kept_dim": codebook["kept_dim"],
        "bytes_ratio": after / before if before and after is not None else None,
    }


def _over(codebook: dict[str, Any], other: str) -> float | None:
    theirs = codebook["baselines"].get(other, {}).get("excess_distortion")
    ours = codebook["after"].get("excess_distortion")
    return None if theirs is None or ours is None else theirs - ours


def _first(interval: list[float] | None) -> float | None:
    return interval[0] if interval else None
