"""The reference trainer. Read top-down: config, batch, model (or uniform), aligner, encoder, decoder, modules,
codebook, losses; comm and draws make several processes one batch; then data, trainer, evaluation."""
