"""How a step is run without losing anything: what has an effect is here."""
