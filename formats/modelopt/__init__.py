"""NVIDIA Model Optimizer's container."""
