"""Running what is done to shards: tasks, their groups, what each came to."""
