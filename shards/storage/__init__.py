"""One way to reach objects on disk, S3, GCS, Azure and in memory, through obstore."""
