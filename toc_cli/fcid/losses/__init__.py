"""The terms of the loss, one file per noun, each a pure function of tensors.

Axis 0 counts clips of this rank. What mixes clips takes a `Comm` and is computed over the batch of all ranks; a weight
of None means that every clip (or second) is there.
"""
