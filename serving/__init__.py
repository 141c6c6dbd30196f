"""From a trained model to a served one: export, a stand-in server for development, and clients."""
