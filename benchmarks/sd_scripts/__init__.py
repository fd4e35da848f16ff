"""Side by side with kohya-ss/sd-scripts: the same run on both programs, and what differs."""
