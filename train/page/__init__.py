"""The page of `scratch-gpt demo`: what `views/` computes, drawn with gradio."""
