"""The reference trainer. Read top-down: config, batch, model (or uniform, the baseline), aligner (the order of a step),
encoder, decoder, modules, codebook, losses (one equation of the paper each); comm and draws make several processes one
batch, convert reads published checkpoints, bench measures a step; then data, trainer, probes, evaluation."""
