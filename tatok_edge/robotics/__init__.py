"""ROS 2 camera messages and bags, without ROS. Bags need the ``robotics`` extra."""
