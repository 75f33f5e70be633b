"""The quickstart: its steps, its network, and the S3 server that it and the tests run on."""
