"""Bags: MCAP files and rosbag2 folders (MCAP or SQLite), read and written without ROS."""
