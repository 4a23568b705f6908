"""Learning to fly in seconds: the critic sees what the vehicle itself cannot measure."""
