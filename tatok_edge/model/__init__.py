"""Pictures to tokens and back: the bundle, its networks, the tokenizer, refinement."""
