"""What kills, stops, interrupts or robs a task and its agent."""
