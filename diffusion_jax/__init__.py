"""Train, sample and measure class-conditional image diffusion models in JAX."""
