"""Small genuine models: built in process, or written as files that the stock loaders read."""
