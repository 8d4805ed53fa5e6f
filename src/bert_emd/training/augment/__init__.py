"""Augmentation of training data: the job, its configuration, and the file that is written piece by piece."""
