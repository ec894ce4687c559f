"""Where frames come from: pictures, videos, cameras, network streams, bags, arrays, a rendered scene."""
