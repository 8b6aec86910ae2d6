"""What one upload may take, whatever it says of itself."""

MAX_BYTES = 32 << 20  # of a request
MAX_PIXELS = 1 << 26  # of an image: 67 million
MAX_IMAGES = 16  # of a request
UPLOAD_SECONDS = 30.0  # for a request's bytes to come
READ_SECONDS = 10.0  # for an image to be decoded; its process is then ended
READ_MEMORY = 4 << 30  # bytes of address space that a process may take to decode
UPLOADS = 16  # requests whose bytes are held at the same time: half a GiB at most
WAITING = 512  # connections at the same time
ANSWER_SECONDS = 60.0  # for an image that has been read, until it is answered
