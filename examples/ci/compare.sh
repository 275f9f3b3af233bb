#!/bin/sh
# Two runs of one checkpoint: the second is held against the first and drawn beside it.
set -eu
toc optimize model.safetensors --features feats.h5 --keep 0.5 --criterion random -o chance.toc.safetensors
toc optimize model.safetensors --features feats.h5 --keep 0.5 --criterion toc -o chosen.toc.safetensors
toc report chosen.toc.json --baseline chance.toc.json --check 'excess_distortion < baseline' --format html:compare.html
