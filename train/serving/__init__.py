"""An OpenAI-compatible server for one model: transformers' own, with requests checked before they reach it."""
