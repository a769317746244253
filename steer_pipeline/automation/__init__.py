"""What runs the graph without a person: jobs, schedules, sensors and conditions. Off until switched on in the UI."""
