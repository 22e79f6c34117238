"""Base models, tokenizers, the chat renderer, adapters and devices. Light: torch loads on use."""
