"""MetaCLIP's concepts: the list that captions are matched with. Built, kept, read."""
