"""What drives the graph from outside: whole campaigns in this process, backfills for the daemon, releases, pruning."""
