"""Truth against prediction, of any method."""
