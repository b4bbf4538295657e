"""From text and tables to the batch of each step."""
