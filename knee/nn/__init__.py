"""Network parts shared by all methods: backbones by name, weights, normalisation, flips."""
