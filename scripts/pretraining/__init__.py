"""Self-supervised training of the sample's encoder; run by scripts/pretrain_sample_encoder.py."""
