"""Parts of networks that every method shares: backbones by name, weights, normalisation, flips."""
