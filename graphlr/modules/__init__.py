"""Where a model's arrays are: all that is known of flax's insides."""
