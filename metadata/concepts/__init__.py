"""MetaCLIP's concepts: builds, stores and reads the list that captions are matched with."""
