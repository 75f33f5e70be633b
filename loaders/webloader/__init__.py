"""The loader behind WebDataModule: user generators over chunks of the exact stream."""
