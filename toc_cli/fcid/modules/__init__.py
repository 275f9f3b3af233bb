"""The parts of the encoders and decoders, one file per noun."""
