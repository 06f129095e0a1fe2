"""Networks: tokenizers, generators, discriminators, teachers."""
