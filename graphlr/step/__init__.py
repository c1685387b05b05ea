"""What one step computes: pure functions, without time, disk, screen or signals."""
