"""Exchange models with the Hugging Face Hub: names, errors, downloads, uploads and model cards."""
