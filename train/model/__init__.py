"""Create a model, or find, load and adapt a pretrained one."""
