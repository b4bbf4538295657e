"""From text and tables to the examples of each step."""
