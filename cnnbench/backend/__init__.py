"""TensorFlow and Keras: lazy import, settings, sessions, and the private names in use."""
