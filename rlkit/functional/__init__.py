"""One small pure function per estimator: tensors in, tensors out, nothing of rlkit imported."""
