"""What the file tools are told: one module of declared settings for each."""
