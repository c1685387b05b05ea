"""What is saved: a graph's state as a flat dict, files of checked parts."""
