"""`dray submit`, and the commands about the jobs that it made."""
