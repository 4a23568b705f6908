"""What every binary needs and no paper owns: flags, the frame of main, loop, report, data, mesh."""
