#!/usr/bin/env bash
# The whole road on AV-Digits: convert, train FCID, prune both its codebooks, evaluate before and after, report.
#
#     examples/avdigits.sh prototype.h5 avdigits-run
#
# Size and effort are variables:
#
#     EPOCHS=60 WIDTH=64 CODES=128   the model (about 8 minutes on one core; EPOCHS=5 shows the road in two)
#     KEEP=0.25 CRITERION=xcov       the share of dimensions that stays, and how they are chosen
#     SEEDS=3 PROBE_EPOCHS=60        probes per figure, and passes of each
#     TOC="python -m toc_cli"        the program, where `toc` is not on the path
#
# The folder then holds: avdigits.h5 (the data), run/ (model.safetensors, config.toml, log.jsonl), features of both
# codebooks, fine.toc.safetensors and coarse.toc.safetensors (the pruned codebooks, with their run records),
# evaluation.toc.json and report.html.
set -euo pipefail

prototype=${1:?usage: avdigits.sh prototype.h5 FOLDER}
folder=${2:?usage: avdigits.sh prototype.h5 FOLDER}
read -r -a toc <<<"${TOC:-toc}"
keep=${KEEP:-0.25}
criterion=${CRITERION:-xcov}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

mkdir -p "$folder"
"${PYTHON:-python}" "$here/convert_avdigits.py" "$prototype" "$folder/avdigits.h5"

# Two stages of alignment, two codebooks: one for seconds (fine), one for clips (coarse).
"${toc[@]}" train-fcid "$folder/avdigits.h5" -o "$folder/run" --epochs "${EPOCHS:-60}" \
    --set model.width="${WIDTH:-64}" --set model.codebook.size="${CODES:-128}"

# What meets each codebook on the unlabelled training clips is all that pruning needs.
for level in fine coarse; do
    "${toc[@]}" evaluate "$folder/run" "$folder/avdigits.h5" --level "$level" --save-features "$folder/$level.features.h5"
    "${toc[@]}" optimize "$folder/run/model.safetensors" --codebook "codebook.$level.embedding" \
        --features "$folder/$level.features.h5" --keep "$keep" --criterion "$criterion" -o "$folder/$level.toc.safetensors"
done

# Probes learn one modality's codes and are tested on another's; one-event probes are also tested on two-event clips.
"${toc[@]}" evaluate "$folder/run" "$folder/avdigits.h5" --keep "$keep" --criterion "toc,$criterion" \
    --artefact "$folder/fine.toc.safetensors" --artefact "$folder/coarse.toc.safetensors" \
    --task label_clip --task label_attribute --task label_second=avvp_train:val:avvp_test \
    --task label_second=ave_train:val:ave_test --transfer avvp_test \
    --seeds "${SEEDS:-3}" --probe-epochs "${PROBE_EPOCHS:-60}" -o "$folder/evaluation.toc.json"

"${toc[@]}" report "$folder/evaluation.toc.json" "$folder/fine.toc.json" "$folder/coarse.toc.json" \
    --format "html:$folder/report.html"
