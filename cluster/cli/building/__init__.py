"""`dray build` and `dray plan`: one request, the datasets that it makes, and what is printed of them."""
